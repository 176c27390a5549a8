"""What the HTTP front end costs: a real server over a simulated core, driven by a light load generator."""
