"""Corrections of labels where names in the sources are wrong, found by inspecting the images."""

import re

# Landmarks: file names (lower case) of the same sight.
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
    # Two sights of the same name: this one is in Kolkata, the other in London.
    "explore_monuments/victoriamemorial": "victoriamemorialkolkata",
}

# Food: "Capsicum annum" is a misspelling that occurs beside the correct name.
SPECIES_ALIASES = {"Capsicum annum": "Capsicum annuum"}

# Cutouts: drawings outside the folders named "cartoon", a toy among the bears, and images blank on white.
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

# Flags: a class is the flag that an image shows, not the name of its file.
# Territories that fly another country's flag, in every source:
SAME_FLAG = {"bv": "no", "cp": "fr", "dg": "io", "ea": "es", "hm": "au", "sj": "no", "um": "us"}
# iso-flags shows the tricolour (in two renderings) for ten French territories, and another country's flag for
# five more places; the emoji sets show their local flags.
ISO_SHOWS = dict.fromkeys(("bl", "gf", "gp", "mq", "nc", "pm", "re", "tf", "wf", "yt"), "fr")
ISO_SHOWS |= {"bq": "nl", "cc": "au", "mf": "sx", "tk": "nz", "vi": "vg"}
# Saint Martin's emoji is the tricolour in both sets; Google's Sark is a copy of Saudi Arabia's flag.
GOOGLE_SHOWS = {"cq": "sa", "mf": "fr"}
TWITTER_SHOWS = {"mf": "fr"}
