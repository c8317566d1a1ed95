"""The same road from Python. Run from this folder: `python shop_study.py`, or cell by cell in a notebook."""

import leanrec

if __name__ == "__main__":
    study = leanrec.Study.from_file("shop.yaml").run()
    print(study.verdict())

    front = study.front()  # a pandas DataFrame, the fastest first
    print(front[["p95_ratio", "throughput_ratio", "loss"]])
    front.to_csv("front.csv")
    study.figure().write_html("front.html")  # a Plotly figure

    chosen = study.choose(prefer="latency")
    print(chosen["reason"], chosen["bundle"])
