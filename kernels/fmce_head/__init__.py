"""The frozen head of FMCE-Net as a loss: -log q_K and its gradient with few multiplications, in PyTorch and Triton."""
