"""The objectives, a file each. `OBJECTIVES` of a file has the names that its objectives are called by, with what makes them."""
