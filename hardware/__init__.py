"""What this machine is: processors, memory, devices, the links between them, and how fast each really is."""
