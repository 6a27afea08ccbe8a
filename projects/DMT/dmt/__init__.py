"""Dynamic Mutual Training: semi-supervised segmentation and classification by two models that teach each other."""
