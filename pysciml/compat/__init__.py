"""Drop-in interfaces: programs written for other libraries run on pysciml unchanged."""
