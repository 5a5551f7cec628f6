"""The FMCE-Net head beside naive layers: frozen, -log q_K and its gradient; and the blocks that train on a CPU."""
