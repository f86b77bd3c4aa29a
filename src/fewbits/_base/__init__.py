"""The ground floor: arrays, errors, catalogs, files, limits. Imports nothing of the house."""
