"""What goes across objectives: each file changes what an objective is given of the pairs, or weights its loss."""
