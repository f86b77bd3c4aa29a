"""Streamed statistics of activations: update, merge, finish; memory does not depend on how much has flowed through."""
