"""Downloads: zip and tar archives from untrusted places, unpacked whole or not at all."""
