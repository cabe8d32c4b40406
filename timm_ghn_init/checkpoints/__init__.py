"""A GHN's file: find, fetch, verify, read.

load            find it, or fetch it once; the GHN
  download      over HTTP, within bounds
  formats       read any format, checked; write ours
    safetensors_header
    torch_files   archives of `torch.save`, and the format before them
    joblib_files  as GHN-3's
      stand_ins   what takes the place of torch's and NumPy's names in a pickle
        unpickle  the machine that reads pickles without running them
"""
