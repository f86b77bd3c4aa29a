"""fewbits: name the accuracy you can afford to lose; get back the smallest, fastest model that keeps it."""
