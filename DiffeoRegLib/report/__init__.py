"""What a run reports: the numbers (measure), the pictures and the page made of them."""
