"""Networks: tensors in, tensors out. What they mean is said in methods/."""
