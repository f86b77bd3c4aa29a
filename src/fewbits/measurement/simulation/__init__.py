"""What an integer kernel must answer: each executed node worked out anew, exactly, and held to what the runtime gave.

``kernels`` computes an operator from its inputs alone: integers are added up exactly, a requantization is one
multiplication in float64, rounded half to even once. ``truth`` lets the runtime write down the graph that it really
executes, runs that with every tensor told, and feeds each integer node's own inputs to the simulation.
"""

from fewbits.measurement.simulation.kernels import KERNELS, Simulated, simulate
from fewbits.measurement.simulation.truth import KernelTruth, NodeTruth, Truth, by_kernel, check_kernels
from fewbits.measurement.simulation.whole import SimulatedGraph

__all__ = [
    "KERNELS",
    "KernelTruth",
    "NodeTruth",
    "Simulated",
    "SimulatedGraph",
    "Truth",
    "by_kernel",
    "check_kernels",
    "simulate",
]
