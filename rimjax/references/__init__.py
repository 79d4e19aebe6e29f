"""Flow 1 (Sec. 3.4): from class names and photographs to the reference bank."""
