"""A GHN's file: a source's name goes in, a verified GHN comes out.

load            find it, or fetch it once; load and save
  download      over HTTP, or from the Hub
  formats       read any format, checked; write ours
    config        what a config may say
    torch_files   what `torch.save` wrote
    joblib_files  pickles as GHN-3's
"""
