// Makes and awaits children until a file is there.
import java.io.File;
import java.util.concurrent.atomic.AtomicInteger;

public class Own {
    public static void main(String[] args) throws Exception {
        AtomicInteger own = new AtomicInteger(), wrong = new AtomicInteger();
        Thread[] threads = new Thread[2];
        for (int i = 0; i < threads.length; i++) {
            int k = 3 + i;
            threads[i] = new Thread(() -> {
                while (!new File(args[0]).exists()) {
                    int got = -1;
                    try {
                        got = new ProcessBuilder("sh", "-c", "exit " + k).start().waitFor();
                    } catch (Exception e) {
                        System.err.println(e);
                    }
                    own.incrementAndGet();
                    if (got != k) wrong.incrementAndGet();
                }
            });
            threads[i].start();
        }
        for (Thread t : threads) t.join();
        System.out.println("own " + own + " wrong " + wrong);
    }
}
