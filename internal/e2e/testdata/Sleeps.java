// Sleeps for as many seconds as it is told.
public class Sleeps {
	public static void main(String[] args) throws InterruptedException {
		Thread.sleep(1000 * Long.parseLong(args[0]));
	}
}
