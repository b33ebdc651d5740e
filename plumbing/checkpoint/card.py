def base_of(start, model=""):
    return {}


def write_card(folder, name):
    pass
