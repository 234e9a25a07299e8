"""What is minimised: similarity of images and regularity of motion."""
