// Prints what a container holds and the mean of its first feature vector, as example.c does.
//
//     mcs Example.cs && mono Example.exe chest.hilum        (or any .NET, on any system)
using System;
using System.Globalization;
using System.Runtime.InteropServices;
using System.Text;
using Microsoft.Win32.SafeHandles;

// A container opened by libhilum. The runtime closes it after the last call that uses it has ended.
public sealed class HilumContainer : SafeHandleZeroOrMinusOneIsInvalid {
  public enum Mode : uint { Mmap = 0, Read = 1 }   // HILUM_MODE_*
  public enum Dtype : byte { F32 = 1, F16 = 2, I8 = 3 }   // HILUM_DTYPE_*

  // hilum_error, whole: the library fills it.
  [StructLayout(LayoutKind.Sequential)]
  private struct Error {
    public int Status, SystemError;
    public ulong Offset, Found, Expected;
    [MarshalAs(UnmanagedType.ByValArray, SizeConst = 32)] public byte[] Field;
  }

  // hilum_header: the fields this program needs, where formats/container.md puts them.
  [StructLayout(LayoutKind.Explicit, Size = 4096)]
  private struct Header {
    [FieldOffset(24)] public ulong NRows;
    [FieldOffset(32)] public uint Dim;
    [FieldOffset(36)] public Dtype Dtype;
    [FieldOffset(37)] public byte NColumns;
  }
  private const int ColumnsOffset = 512, ColumnBytes = 64, AbiVersion = 1;

  private const string Library = "libhilum";   // libhilum.so, libhilum.dll
  private const CallingConvention C = CallingConvention.Cdecl;

  // Paths are UTF-8 and end with a zero byte: a byte array says so to every runtime.
  [DllImport(Library, CallingConvention = C)]
  private static extern int hilum_open(byte[] path, Mode mode, out HilumContainer container,
                                       out Error error);
  [DllImport(Library, CallingConvention = C)]
  private static extern void hilum_close(IntPtr container);
  [DllImport(Library, CallingConvention = C)]
  private static extern IntPtr hilum_get_header(HilumContainer container);
  [DllImport(Library, CallingConvention = C)]
  private static extern IntPtr hilum_scales(HilumContainer container);
  [DllImport(Library, CallingConvention = C)]
  private static extern int hilum_read_rows(HilumContainer container, ulong firstRow, ulong nRows,
                                            [Out] byte[] rows, ulong nBytes, out Error error);
  [DllImport(Library, CallingConvention = C)]
  private static extern ulong hilum_n_chunks(HilumContainer container);
  [DllImport(Library, CallingConvention = C)]
  private static extern int hilum_verify_chunk(HilumContainer container, ulong chunk,
                                               out Error error);
  [DllImport(Library, CallingConvention = C)]
  private static extern IntPtr hilum_status_text(int status);
  [DllImport(Library, CallingConvention = C)]
  private static extern uint hilum_abi_version();

  private string path;
  private Header header;
  private float[] scales;
  private HilumContainer() : base(true) { }   // made by the runtime, in hilum_open

  protected override bool ReleaseHandle() {
    hilum_close(handle);
    return true;
  }

  // Opens and validates all but the features, which Verify looks at. Throws an exception with what
  // was found and expected.
  public static HilumContainer Open(string path, Mode mode = Mode.Mmap) {
    if (hilum_abi_version() != AbiVersion) throw new NotSupportedException("another libhilum");
    HilumContainer container;
    Error error;
    int status = hilum_open(Encoding.UTF8.GetBytes(path + "\0"), mode, out container, out error);
    if (status != 0) throw Failure(path, error);
    // A copy: it may outlive the container.
    container.path = path;
    container.header = (Header)Marshal.PtrToStructure(hilum_get_header(container), typeof(Header));
    if (container.header.Dtype == Dtype.I8) {
      container.scales = new float[container.Dim];
      Marshal.Copy(hilum_scales(container), container.scales, 0, container.Dim);
    }
    return container;
  }

  public long NRows { get { return (long)header.NRows; } }
  public int Dim { get { return (int)header.Dim; } }

  // The name of each column, in their order.
  public string[] ColumnNames() {
    var names = new string[header.NColumns];
    for (int i = 0; i < names.Length; i++) {
      names[i] = Marshal.PtrToStringAnsi(
          IntPtr.Add(hilum_get_header(this), ColumnsOffset + i * ColumnBytes));
    }
    GC.KeepAlive(this);   // the header lies in the library's memory
    return names;
  }

  // Compares every chunk of 1024 rows with its checksum.
  public void Verify() {
    Error error;
    for (ulong chunk = 0; chunk < hilum_n_chunks(this); chunk++) {
      if (hilum_verify_chunk(this, chunk, out error) != 0) throw Failure(path, error);
    }
  }

  // Rows [firstRow, firstRow + nRows) as nRows * Dim floats, one row after the other.
  public float[] ReadRows(long firstRow, int nRows) {
    int elementBytes = header.Dtype == Dtype.F32 ? 4 : header.Dtype == Dtype.F16 ? 2 : 1;
    var bytes = new byte[checked(nRows * Dim * elementBytes)];
    Error error;
    int status = hilum_read_rows(this, checked((ulong)firstRow), checked((ulong)nRows), bytes,
                                 (ulong)bytes.Length, out error);
    if (status != 0) throw Failure(path, error);
    var values = new float[nRows * Dim];
    for (int i = 0; i < values.Length; i++) {
      switch (header.Dtype) {
        case Dtype.F32: values[i] = BitConverter.ToSingle(bytes, 4 * i); break;
        case Dtype.F16: values[i] = HalfToSingle(BitConverter.ToUInt16(bytes, 2 * i)); break;
        default: values[i] = (sbyte)bytes[i] * scales[i % Dim]; break;
      }
    }
    return values;
  }

  // IEEE 754 half to float; exact. Infinities do not occur: ALL_FINITE.
  private static float HalfToSingle(ushort half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double value = exponent == 0 ? mantissa * Math.Pow(2, -24)
                                 : (mantissa + 1024) * Math.Pow(2, exponent - 25);
    return (float)((half & 0x8000) != 0 ? -value : value);
  }

  private static Exception Failure(string path, Error error) {
    string text = Marshal.PtrToStringAnsi(hilum_status_text(error.Status));
    if (error.SystemError != 0) {
      return new System.IO.IOException(path + ": " + text + " (" + error.SystemError + ")");
    }
    string field = Encoding.ASCII.GetString(error.Field).TrimEnd('\0');
    return new System.IO.InvalidDataException(string.Format(
        CultureInfo.InvariantCulture, "{0}: {1}: {2} at byte {3}: found {4}, expected {5}", path,
        field, text, error.Offset, error.Found, error.Expected));
  }
}

public static class Example {
  public static int Main(string[] arguments) {
    if (arguments.Length != 1) {
      Console.Error.WriteLine("usage: Example FILE.hilum");
      return 2;
    }
    try {
      using (HilumContainer container = HilumContainer.Open(arguments[0])) {
        Console.WriteLine(container.NRows + " rows of " + container.Dim + " features");
        foreach (string name in container.ColumnNames()) Console.WriteLine("column " + name);
        container.Verify();
        double sum = 0;
        foreach (float value in container.ReadRows(0, 1)) sum += value;
        Console.WriteLine("mean of row 0: " +
                          (sum / container.Dim).ToString("F6", CultureInfo.InvariantCulture));
      }
      return 0;
    } catch (System.IO.IOException failure) {
      Console.Error.WriteLine(failure.Message);
      return 1;
    } catch (System.IO.InvalidDataException failure) {
      Console.Error.WriteLine(failure.Message);
      return 1;
    }
  }
}
