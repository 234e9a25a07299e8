"""Between MRML nodes and plain arrays with a place in the patient."""
