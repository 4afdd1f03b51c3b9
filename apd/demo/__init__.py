"""A page on this machine, where a picture is attacked before one's eyes."""
