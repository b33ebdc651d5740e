"""What any trainer needs and the paper does not speak of, one job a file."""
