# Makes and awaits children until a file is there: own.py subprocess|asyncio|multiprocessing FILE
import asyncio, multiprocessing, os, subprocess, sys, threading, time

how, stop = sys.argv[1:]
own = wrong = 0


def check(got, want):
    global own, wrong
    own += 1
    if got != want:
        wrong += 1
        print("got", got, "not", want, file=sys.stderr)


def with_subprocess():
    def some(k):
        while not os.path.exists(stop):
            check(subprocess.Popen(["sh", "-c", "exit %d" % k]).wait(), k)
            check(subprocess.run(["sh", "-c", "kill -9 $$"]).returncode, -9)
    threads = [threading.Thread(target=some, args=(k,)) for k in (7, 8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


async def with_asyncio():
    async def some(k):
        while not os.path.exists(stop):
            p = await asyncio.create_subprocess_exec("sh", "-c", "exit %d" % k)
            check(await p.wait(), k)
            await asyncio.sleep(0.001)
    await asyncio.gather(*(some(k) for k in (1, 2, 3)))


def leave(k):
    sys.exit(k)


def with_multiprocessing():
    while not os.path.exists(stop):
        ps = [multiprocessing.Process(target=leave, args=(k,)) for k in (0, 5)]
        for p in ps:
            p.start()
        for p, k in zip(ps, (0, 5)):
            p.join(20)
            check(p.exitcode, k)


if __name__ == "__main__":
    if how == "subprocess":
        with_subprocess()
    elif how == "asyncio":
        asyncio.run(with_asyncio())
    else:
        with_multiprocessing()
    print("own", own, "wrong", wrong)
