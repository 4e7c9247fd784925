"""Independent NumPy references: every design written a second time, straight from its equation.

Nothing here imports PyTorch or the library under test. All arithmetic is float64.

* `tape`: reverse-mode automatic differentiation, so that a forward equation is all one writes.
* `norms`: normalisations, the fused add-and-norm, and the layer-normalised LSTM and GRU.
* `parts`: attention and MLP branches.
* `schemes`: one function per residual/normalisation design, and `run` with all gradients.
* `attention`: a loop-by-loop attention with every masking and positional option (forward only).
* `init`: how everything begins.
"""
