"""The embedded world: data made by the project, and the tiny model's base weights. No part of the library."""
