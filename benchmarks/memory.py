"""Holds the forecast of memory to what PyTorch's allocator and the kernel count, and writes docs/results/memory.md.

    python -m benchmarks.memory                       # 200 random cases beside the allocator, then the page
    python -m benchmarks.memory --cases 20 --seed 7 --no-page
    python -m benchmarks.memory --process             # the process's memory of a few cases, each in a fresh process
    python -m benchmarks.memory --device cuda         # on a GPU: reserved memory, each case in a fresh process

One thread. The allocator's peak is that of torch.profiler, which sees workspaces of kernels too.
"""
