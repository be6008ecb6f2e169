"""Two streams as version 1 of their schemas was written, by the code of that time: two pairs each, compressed."""

from __future__ import annotations

import base64
import zlib

_TOKENIZED_PAIRS = (
    "eNrVVc1u00AQHjtuiIpVIpRDDhwiq8eAnFBKEvWQY489cMgBKXKcTWxobMt2IKKq1GMPHPoACPEAPAAPwJEH4MBDcOSEmfWu3WWUlFaUAxOtd2a/+dmd"
    "nclmWZatKgB14LQNO1CFLaghh6QZ5bqJX0Ou1zTOA+g4eiD4r+inKfkaDndvsme7Tx1uvcXl2H3czTEz98N1Pkr99zhOrMT12MKxBlYavmSB/4ZNx5Hj"
    "x4nVtqI4nC5dFiMYxWzGYha47GGhpyiMX7E48cMAFe1HHQSm/pwlaWINTiw/iJYpAonndJ/sD2zbOm1bCUtTP5jnCgtnNT5mwTz1rEEPsdJX5xTy8wds"
    "EaZxGIynUcjPdYefB5PwCfMxxPEN5RTHgTzX7s8sw6nKc7gr1zjdxxGzF8xN8YxpvAxcBznMIeqPNthw2fXChAWqBe4L8/5W2JgNxQa3Aw9A7LuM5U8T"
    "bjNEm4OM22g699tU4vDZT9mC8z+EX62Fn+9KjJYSo5lXR7m3PMIH9P3uGv5H2aX/o2z9GdrSP97wIkqFfyP/8Zw0sI6qeA9mLolavTrmFyXmZ8HrNNd3"
    "cSThMnbZ+NgPWF6zNYxSE7A2LGMDiQ336kp+ihrhZYw759eKNgZ+i34DyHj/6WK/gnbw3kQP1tH3Dl+qGPBM2lzAJWnyftWeUntwMuv09/u97u89uI06"
    "ZtnLzzXhV1f8NmAztchM14tz2QQvZFPOQ4IXsswxHBL8kNiPCD4i8T2Ce8R+RfAViX9G8DMl55zOCX5OcJB1qxO9v5WNW/b3B9K0NXbaGrnQMYiOqqvy"
    "FTnovng/XFyjH1byrpvEx6b3aDbp9Jk96V/1HtWV/52u5OPwdULfvyP5/jXg35FB6hFuKBukH+CGcmHfJPhty0Wf/K+UiTcEfgHhEdWw"
)

_SCORED_PAIRS = (
    "eNrtVj9P20AUf05MmlIrtSoGBgZkMWSglQlKoFEHxowMHbJFwTkSt4lt2U4bFSExMjCwt6oYO/IBKsHQoUOHjgx8iI5divvufA7HUwig0k696Pne3e/9"
    "v+eLkyRJGjqACXzMQgkKMANF5HBo+njfwKcu93WN8wA5pHVI+TO0My/5IhKzq2vt7a0a155BckJntSIwQ9jhMp+k/HukHStyemzQturI+CHrtIK2G0bW"
    "shWEfmfosBCRIGTbLGSew57G/mvmue+YItB6w8LI9T0UtJ+tINBxuyyKI6u+Y7leMIy57V67Uq3VbdvaXbYiFseu1xUCg/ao1WdeN+5Z9XXExrZWdkXu"
    "Hhv4ceh7rU7g85weIp1jAQ6Q5pCOsSYNJBPpDLG+zK35K0lwMubwUZZ7KAKLSE+QMKNWyF4xJ8aU+343iNDGRZIYF1xPy/P6Z3UFObsxG3D+YyJk4PMU"
    "H6b04fT8iHmZB4AY7QeKj4WJPgp4TgX8iWaAJSEPBS6/pMinecgc4nDoOW3ksA4o37xGh69lTIoGJoE5HVxc5rOk5MNjNFRfbkfksoE6L9Ja5KbV62dq"
    "V+N1+aH4WFR8zItuH8cmPByh7Q+3sN9MLu1vJpNzWJb2sWkHQZza18WP12RO1PuByNKU7950n98Un19SPkdr/Qgp8oehw1p912PiHSyil2IKaxtj30B8"
    "w2NTqQ8IHGPHNxMjh7Q/dNEfUh4whGQ9n8abjhKeW3qnmGi7xLfyOryUOl/hcmjyfNU7Qr1TqrUt26ltr129U2ZRxhjfTedaajen2F2A68cimel+lpdN"
    "8GxtyHmD4Nla1hgaBG8Q/SbBm8R/j+A9oj8i+Ij43yP4nlJzPvYJvk/wQ4IfEv9HBD8i8R8T/JjonxL8lMSfdtLVc4V7WOv3bO9P7d8wNG2CnjZhncno"
    "REaVVfm8pElx5a7mcYLdc6LM1D8/ulN+D2ze4h4YyR4pE3/XfVdU7c7z1a3K1O8KU7lvK5IP/bcR/Y75Lr9jFuDvDX1CH99lrZP3CO64zvTnCf6v1voN"
    "9+tN60y/TPDyhFqX4P8A5X+Yz78BRDkMrg=="
)
STREAMS = {
    name: zlib.decompress(base64.b64decode(text))
    for name, text in (("tokenized_pairs", _TOKENIZED_PAIRS), ("scored_pairs", _SCORED_PAIRS))
}
