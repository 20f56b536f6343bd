"""Networks beside the U-Net whose outputs enter it: ControlNet and T2I-Adapter; undertow's own residual port."""
