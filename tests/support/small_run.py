"""The least run of training that has all three phases."""

SMALL_RUN = [
    "+experiment=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.val_images=3",
    "data.batch_size=2",
    "method.decoder_dim=16",
    "method.phases.segmentation=2",
    "method.phases.propagation=3",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.pictures.num_images=0",
]
