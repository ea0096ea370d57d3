"""One page, and the same figures as pictures, from a study: contents, then charts as data, then who draws them."""
