"""A page on this machine, in the browser, where the user's pictures are attacked."""
