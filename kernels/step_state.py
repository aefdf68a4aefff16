"""The step state: one float64 vector in device memory that holds whatever changes from step to step.

A recorded step (a CUDA graph, a native replay) bakes host scalars in, so the learning rate, the step
number, the random seed, the loss and the optimizer's hyperparameters live in this vector instead.
Integers up to 2**53 are exact in it. Every kernel that needs one of them takes the vector and reads
the slot named here; the CUDA loader turns these names into ``#define`` lines.
"""

# Written once a step
STEP = 0  # number of the current optimizer step, from 1
CURSOR = 1  # steps done since the table of learning rates was filled
GRAD_SQ_NORM = 2  # squared global norm of the gradient, where clipping asked for it
LR = 3  # learning rate of the current step
LOSS = 4  # weighted mean loss of the current batch
BATCH_WEIGHT = 5  # sum of the sample weights of the current batch
GRAD_SCALE = 6  # factor that clipping by the global norm puts on the gradient
# Where the steps are in the epochs that run at once; the host zeroes these four before the first of them
ROW = 7  # first row of the current batch in the table of the epochs' orders
LOSS_SUM = 8  # sum of LOSS * BATCH_WEIGHT over the steps of the current epoch
WEIGHT_SUM = 9  # sum of BATCH_WEIGHT over them
EPOCH_INDEX = 10  # epochs that are complete: the row of the current one in the table of results
# Random numbers: the 64-bit seed as two 32-bit halves
SEED_LO = 11
SEED_HI = 12
# Sticky: the number of the first step whose loss was not finite, else 0. Updates are no-ops from then on.
BAD_STEP = 13
# The optimizer's hyperparameters; what P0..P7 mean stands beside each step in ``backends/base.py``
WEIGHT_DECAY = 15
P0 = 16
P1 = 17
P2 = 18
P3 = 19
P4 = 20
P5 = 21
P6 = 22
P7 = 23
EMA_DECAY = 24
# Scaling of the loss's gradient, so that those of activations fit into float16
LOSS_SCALE = 25  # the factor; 0 counts as 1
GOOD_STEPS = 26  # steps since it last changed
SKIP_STEP = 27  # 1: the current step updates nothing, because a gradient was not finite
# Of a model with several outputs: the weighted sum of the losses so far
TOTAL_LOSS = 28

#: Good steps after which LOSS_SCALE doubles, and its largest value
GROWTH_INTERVAL = 2000
MOST_LOSS_SCALE = 2**24

SIZE = 32
