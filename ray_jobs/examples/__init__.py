"""Small training programs to copy from: plain `torchrun`, Ray Train, Lightning. `scripts/soak_train` kills them at random and proves what they trained.

run.py         what they share: the model, the loop, the checkpoint, the record of what was trained
torchrun.py    torch.distributed alone; fetching by threads of each rank
ray_train.py   Ray Train; fetching by Ray Data actors
lightning.py   a LightningDataModule
"""
