"""What runs at the GPU host. It never holds the key, and never imports the module that reads one."""
