"""Control maps from pictures, by classic image processing: what ControlNets and T2I-Adapters read. No networks."""
