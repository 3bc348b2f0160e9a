"""What each metric means, in plain words: the one place that all pages take their help texts from.

*Change* is the positive class: precision and recall are those of the changed pixels.
"""

LABELS = {
    "f1": "F1",
    "precision": "Precision",
    "recall": "Recall",
    "iou": "IoU",
    "average_precision": "Average precision",
    "pixel_auc": "ROC AUC",
    "ece": "Calibration error",
    "prevalence": "Share of change",
}
"""Names of the figures of a score, in the order in which they are shown."""

HELP = {
    "f1": "One figure for both kinds of error: high only if little is missed and few alarms are false. "
    "The harmonic mean of precision and recall.",
    "precision": "Of all pixels called changed, the share that is changed. Low: many false alarms.",
    "recall": "Of all pixels that are changed, the share that is found. Low: much is missed.",
    "iou": "Found change over everything that is changed or called so. Always lower than F1, same order.",
    "average_precision": "Precision averaged over all recalls, so it needs no threshold. Calling everything changed "
    "reaches the share of change, which is why figures of events with more change look better.",
    "pixel_auc": "How often a changed pixel scores above an unchanged one: 0.5 is chance, 1 is perfect. Forgiving "
    "where change is rare.",
    "ece": "How far stated probabilities are from what is observed, on average: of pixels scored 0.8, about 80 % "
    "should be changed. 0 is honest.",
    "prevalence": "Share of changed pixels among the labelled ones that were assessed.",
}
"""Of figures of a score."""

TRAINING_HELP = {
    "loss": "What training makes small. Compare it between runs with the same parts of the loss only.",
    "bce": "Cross entropy of each pixel, in nats: how surprised the network is by the label. Lower is better.",
    "dice": "One minus the overlap of predicted and labelled change. Lower is better; it minds rare change.",
    "lovasz": "A smooth stand-in for one minus IoU. Lower is better.",
    "combined_iou": "Cross entropy and one minus IoU, mixed. Lower is better.",
    "infonce": "How well the embeddings of unchanged places are told from changed ones. Lower is better.",
    "ap": HELP["average_precision"],
    "ap_shift": "Average precision, the mean over shares of change as they are met in use. It chooses the weights "
    "that are kept.",
    "ap_third": "Average precision as if a third as much had changed as in the training data.",
    "ap_tenth": "Average precision as if a tenth as much had changed as in the training data.",
    "auc": HELP["pixel_auc"],
    "best_f1": "F1 at the threshold that suits these very labels best: what no other threshold can beat.",
    "miou": "IoU of each class, averaged: every class counts alike, however rare it is.",
    "accuracy": "Share of samples, or pixels, that got the right class. High by itself where one class is common.",
    "top1": "Share of samples whose best guess is right.",
    "change_f1": f"Of the changed class. {HELP['f1']}",
    "change_iou": f"Of the changed class. {HELP['iou']}",
    "macro_dice_with_background": "F1 of each class, averaged, the unchanged class among them, as reference system 1 "
    "counts it. It looks high because the unchanged class is easy.",
    "lr": "Size of the optimiser's steps.",
}
"""Of metrics that trainings write, by the last part of their name."""

PICTURE_HELP = {
    "trustworthiness": "How far points that are near in the picture are near for the model too: 1 is a faithful "
    "picture, below about 0.9 do not read much into which point lies beside which.",
    "silhouette": "From −1 to 1: how much nearer a patch is to its own group than to the next one. *Changed apart*: "
    "changed against unchanged patches; the higher, the better the model tells them apart in this event. *Event "
    "apart*: this event against the others; the higher, the more the model sees the place instead of the change.",
}
"""Of pictures of embeddings."""


def training_help(metric: str) -> str | None:
    """Return what a training's metric means; None for one without words.

    Args:
        metric: Its name, such as ``val/ap``.
    """
    last = metric.rsplit("/", 1)[-1]
    return TRAINING_HELP.get(last) or HELP.get(last)
