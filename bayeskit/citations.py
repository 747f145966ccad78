"""What to cite."""

import inspect

_MODELS = {
    "KroneckerSBL": """@article{he2024kronecker,
  author  = {He, Yanbin and Joseph, Geethu},
  title   = {Bayesian Algorithms for {K}ronecker-Structured Sparse Vector Recovery With Application
             to {IRS-MIMO} Channel Estimation},
  journal = {IEEE Transactions on Signal Processing},
  year    = {2024},
  note    = {arXiv:2307.14719},
}""",
    "FunctionalTucker": """@inproceedings{fang2024functional,
  author    = {Fang, Shikai and Yu, Xin and Wang, Zheng and Li, Shibo and Kirby, Mike and Zhe,
               Shandian},
  title     = {Functional {B}ayesian {T}ucker Decomposition for Continuous-indexed Tensor Data},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
}""",
    "SpectralPDE": """@inproceedings{fang2024solving,
  author    = {Fang, Shikai and Cooley, Madison and Long, Da and Li, Shibo and Kirby, Robert and
               Zhe, Shandian},
  title     = {Solving High Frequency and Multi-Scale {PDE}s with {G}aussian Processes},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
}""",
    "GaussianMixture": """@article{fraley2007bayesian,
  author  = {Fraley, Chris and Raftery, Adrian E.},
  title   = {{B}ayesian Regularization for Normal Mixture Estimation and Model-Based Clustering},
  journal = {Journal of Classification},
  volume  = {24},
  year    = {2007},
}""",
    "SingularDistribution": """@article{chae2023likelihood,
  author  = {Chae, Minwoo and Kim, Dongha and Kim, Yongdai and Lin, Lizhen},
  title   = {A Likelihood Approach to Nonparametric Estimation of a Singular Distribution Using Deep
             Generative Models},
  journal = {Journal of Machine Learning Research},
  year    = {2023},
  note    = {arXiv:2105.04046},
}""",
}
_METHODS = {
    "VariationalInference": """@inproceedings{tucker2019doubly,
  author    = {Tucker, George and Lawson, Dieterich and Gu, Shixiang and Maddison, Chris J.},
  title     = {Doubly Reparameterized Gradient Estimators for {M}onte {C}arlo Objectives},
  booktitle = {International Conference on Learning Representations},
  year      = {2019},
}

@inproceedings{burda2016importance,
  author    = {Burda, Yuri and Grosse, Roger and Salakhutdinov, Ruslan},
  title     = {Importance Weighted Autoencoders},
  booktitle = {International Conference on Learning Representations},
  year      = {2016},
}""",
    "SemidefiniteProgram": """@inproceedings{zhuang2023likelihood,
  author    = {Zhuang, Yubo and Chen, Xiaohui and Yang, Yun},
  title     = {Likelihood Adjusted Semidefinite Programs for Clustering Heterogeneous Data},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  note      = {arXiv:2209.15097},
}""",
    "MCMC": """@article{hoffman2014nuts,
  author  = {Hoffman, Matthew D. and Gelman, Andrew},
  title   = {The No-{U}-Turn Sampler: Adaptively Setting Path Lengths in {H}amiltonian {M}onte
             {C}arlo},
  journal = {Journal of Machine Learning Research},
  volume  = {15},
  year    = {2014},
}

@article{phan2019composable,
  author  = {Phan, Du and Pradhan, Neeraj and Jankowiak, Martin},
  title   = {Composable Effects for Flexible and Accelerated Probabilistic Programming in
             {NumPyro}},
  journal = {arXiv:1912.11554},
  year    = {2019},
}""",
}


def cite(obj) -> str:
    """BibTeX entries for a model, a method, or a posterior (both of its).

    Parameters
    ----------
    obj : model, method or Posterior
        Or the class of a model or method.

    Returns
    -------
    str
        Entries with an empty line between two. Methods that a model's own source describes have
        none of theirs.

    Raises
    ------
    TypeError
        If there is nothing to cite, naming what there is something for.

    Examples
    --------
    >>> import bayeskit as bk
    >>> "hoffman2014nuts" in bk.cite(bk.inference.MCMC())
    True
    """
    parts = [obj.model, obj.method] if hasattr(obj, "approximation") else [obj]
    names = [part.__name__ if inspect.isclass(part) else type(part).__name__ for part in parts]
    entries = [table[name] for name in names for table in (_MODELS, _METHODS) if name in table]
    if not entries:
        raise TypeError(
            f"nothing to cite for {names[0]}; known are {sorted(_MODELS) + sorted(_METHODS)}"
        )
    return "\n\n".join(entries)
