"""One pass over a model: discover, start, follow, judge; the loop; what jobs leave behind."""
