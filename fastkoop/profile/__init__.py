"""What this machine reaches: ceilings, throughput, the roofline."""
