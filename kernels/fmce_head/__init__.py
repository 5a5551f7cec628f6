"""The frozen FMCE-Net head as a loss: -log q_K and its gradient by Winograd convolutions, beside naive layers."""
