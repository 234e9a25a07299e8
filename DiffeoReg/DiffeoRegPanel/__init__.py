"""The Slicer side of DiffeoReg: nodes in, nodes out. No torch and no mathematics."""
