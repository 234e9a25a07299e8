"""Images and labels with a place in the patient; files in and out."""
