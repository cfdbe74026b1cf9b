"""How fast the networks are on a device, and which settings make them fastest."""
