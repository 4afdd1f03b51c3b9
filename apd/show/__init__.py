"""What an attack does to images, and what learned vectors are near, to be looked at."""
