"""The objectives, a file each. `OBJECTIVES` of a file has an Entry for each that it makes."""
