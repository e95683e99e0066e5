"""Label corrections: what the sources' own names get wrong, found by looking at the pictures."""

import re

# Landmarks: the same sight under several file names (lower case).
LANDMARK_ALIASES = {
    "chenonceau": "chateaudechenonceau",
    "gizahpyramids": "greatpyramid",
    "greatpyramidofgiza": "greatpyramid",
    "greatwallofchina": "greatwall",
    "kutubminar": "qutubminar",
    "lemusee": "louvre",
    "louvre20070224c": "louvre",
    "neuschwanstein": "neuschwansteincastle",
    "operasidney": "operahouse",
    "toureiffel": "eiffeltower",
    # Two sights of one name: this one stands in Kolkata, the other in London.
    "explore_monuments/victoriamemorial": "victoriamemorialkolkata",
}

# Food: "Capsicum annum" is a misspelling beside the right name.
SPECIES_ALIASES = {"Capsicum annum": "Capsicum annuum"}

# Cutouts: drawings outside of the folders named "cartoon", a toy among the bears, and what is blank on white.
NOT_PHOTOS = re.compile(
    r"animals/mammals/(hedgehog|bears/toys/.*)|clothes/(button|t_.*|hats/.*)|medical/tooth"
    r"|naturalforces/lightningbolt|seasonal/(easter|hanukkah|newyears)/.*"
    r"|seasonal/christmas/(Santa|bow|candy_cane|hard_candy|lamp|santahat|star|stocking|tree|xmas_tp_bulb)"
    r"|seasonal/halloween/(bat_left|blackcat|ghost|jackolantern_mean|skull|spider)"
    r"|space/planets/0_sun|town/flags/.*"
)

# Emoji: this cat face is a copy of the smiling one.
NOT_THIS_EMOJI = {("fluent", "1f431")}

# Icons: white on transparent, so blank on white.
BLANK_ICONS = {("faenza", "audio-volume-muted"), ("faenza", "audio-volume-muted-panel")}

# Flags: a class is the flag that a picture shows, whatever its file is called.
# Territories that fly another country's flag, in every source:
SAME_FLAG = {
    "bv": "no",
    "cp": "fr",
    "dg": "io",
    "ea": "es",
    "hm": "au",
    "sj": "no",
    "um": "us",
}
# iso-flags draws ten French territories as the tricolour (in two renderings) and gives five more places the
# flag of another; the emoji draw their own ones.
ISO_SHOWS = dict.fromkeys(("bl", "gf", "gp", "mq", "nc", "pm", "re", "tf", "wf", "yt"), "fr") | {
    "bq": "nl",
    "cc": "au",
    "mf": "sx",
    "tk": "nz",
    "vi": "vg",
}
# Saint Martin's emoji is the tricolour in both sets; Google's Sark is a copy of Saudi Arabia.
GOOGLE_SHOWS = {"cq": "sa", "mf": "fr"}
TWITTER_SHOWS = {"mf": "fr"}
