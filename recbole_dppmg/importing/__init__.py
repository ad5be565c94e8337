"""Datasets of other layouts, as RecBole's atomic files with item texts, images and features."""
