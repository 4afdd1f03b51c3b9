"""One run: a method on a data set, trained and evaluated."""
