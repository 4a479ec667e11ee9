"""The least run of training that has all three phases."""

SMALL_RUN = [
    "+experiment=synthetic",
    "data.image_size=32",
    "data.num_classes=3",
    "data.val_images=3",
    "data.batch_size=2",
    "model.decoder_dim=16",
    "pseudo_label.start_step=1",
    "pseudo_label.propagation_step=2",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "callbacks.pictures.num_images=0",
]
